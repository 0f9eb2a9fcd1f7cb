"""What a person looks at: curves, the report, the chat, model cards, text that is safe to show."""
