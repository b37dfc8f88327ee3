"""The rules, one module each; every module declares one `RULE`."""
