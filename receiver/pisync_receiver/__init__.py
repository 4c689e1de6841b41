"""The cloud's half of PiSync: takes batches and reports, stores them before it answers, and answers about them."""
