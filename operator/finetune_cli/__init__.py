"""`finetune`: the same object and the same reconcile, on one machine."""
