"""The process around the reconcile function: kopf handlers, work queue, workers, health and metrics."""
