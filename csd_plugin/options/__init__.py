"""The format of option files: `sections` describes it, `checks` applies it, `files` reads files and checks them."""
