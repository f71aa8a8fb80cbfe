"""What every route uses: bodies, errors, paging, health, metrics, documentation."""
