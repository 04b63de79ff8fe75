"""Immutable artefacts on disk, their lineage, and the folders of running stages."""
