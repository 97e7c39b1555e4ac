"""Websockets between regions, and to clients and workers."""
