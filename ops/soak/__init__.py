"""`moray soak`: a session under load whose processes are killed and stopped, and what must not come of it."""
