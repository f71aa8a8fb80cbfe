"""Parts that all routes share: bodies, errors, paging, health, metrics, documentation."""
