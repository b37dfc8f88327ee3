"""Jobs in a cluster: connection, watches, logs."""
