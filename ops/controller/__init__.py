"""One actor per model that watches it: alarms to the sinks, suspect replicas out of rotation and restarted."""
