"""What every command uses: option types, output, errors, progress."""
