"""What the courier does: credentials, stores, and putting one thing into one of them. Nothing else imports it."""
