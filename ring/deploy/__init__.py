"""Files that run a ring the way machines are run already, made from ring.toml: systemd, Docker Compose, Kubernetes."""
