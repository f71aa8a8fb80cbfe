"""The vocabulary of client, service, diagnosis and worker: requests, answers, statistics, remedies and number rules.

There is one module per domain, so that `import gradmedic` loads only what a training needs.
"""
