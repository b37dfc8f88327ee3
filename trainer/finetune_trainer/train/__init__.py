"""The train stage: from prepared tokens and a base model to an exported model, resumable at every step.

`stage` assembles an attempt, `engine` builds DeepSpeed's engine, and `loop` trains. `ds_config`, `plan`, `schedule`,
`stopping`, `loss_watch` and `overfitting` are pure.
"""
