"""`moray bench peers`: two real engines under one load, behind Moray and behind what others put in front of them.

`load` the requests, `sides` what serves them, `rounds` who is measured when, `figures` what that makes.
"""
