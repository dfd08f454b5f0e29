"""Addresses, listening, serving, and a client for single requests."""
