"""Accounts, devices, tokens, profiles, account data, keys, receipts and unread counts."""
