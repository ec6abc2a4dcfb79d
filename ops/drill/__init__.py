"""`moray drill`: strikes a running cluster, watches it mend, and says what held.

`choosing` who is struck, and who is not; `strikes` does it here, `elsewhere` on another host through Ray, `brake` stops
a process for as long as somebody wants it; `streams` the load of the drill's own; `watch` looks; `recovery` makes a
report of what was seen, `rendering` shows it; `drill` is the whole of it.
"""
