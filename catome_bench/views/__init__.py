"""Rows and pictures as tables and figures."""
