"""What a bot embeds: options, life, verbs, receipts."""
