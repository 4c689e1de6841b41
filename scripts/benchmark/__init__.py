"""Speed figures, each beside a yardstick that was measured in the same run on the same machine."""
