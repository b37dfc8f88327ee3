"""The process of a trainer pod: starts the fork server, which starts the ranks, and reports how they ended.

`supervisor` is the main process of the pod, `forkserver` imports the libraries once and forks the ranks, `rank_group`
watches them, `progress_server` serves their progress, and `outcome` derives exit status and termination message.
"""
