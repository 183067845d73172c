"""Measuring generators: distances between distributions, cost, pictures, reports."""
