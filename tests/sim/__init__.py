"""The whole cluster of cores, seeded and reproducible."""
