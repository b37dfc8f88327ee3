"""How good the model is: figures of the held-out test split before and after training, the report, the model card.

`metrics`, `significance`, `compare` and `facts` are pure; `stage` alone reads and writes storage, `predict` and
`generate` alone need torch.
"""
