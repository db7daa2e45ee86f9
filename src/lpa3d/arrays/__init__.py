"""What all share that work on arrays: checks, back ends, components, tables; no verb and no file is known here."""
