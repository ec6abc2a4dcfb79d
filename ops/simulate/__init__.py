"""`moray simulate`: a cluster in virtual time, with the router's real batcher and simulated engines."""
