"""Devices, and later meshes, collectives and sharded layers."""
