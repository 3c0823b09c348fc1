"""Campaigns for reliability and security; see __main__.py and docs/reliability.md."""
