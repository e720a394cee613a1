"""Nets and statistics that metrics are made of."""
