"""The vocabulary of the protocol: every request, answer, statistic and remedy is defined here, once.

One module per domain, so that `import gradmedic` loads only what a training needs.
"""
