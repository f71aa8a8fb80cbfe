"""Access: authentication, authorization, API keys, browser sessions, rate limits and audit records."""
