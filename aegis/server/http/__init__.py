"""Requests and responses, whatever server they come by."""
