"""Alarms from what a cluster reports: pure detectors, values in and values out."""
