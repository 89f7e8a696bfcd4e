"""What an option file may hold: `sections` describes it, `checks` applies it, `files` reads files by it."""
