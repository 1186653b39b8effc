"""Devices: the mesh, and which axis of which array is split over it, written as data.

The lowest room: it imports nothing of this package but `errors`.
"""
