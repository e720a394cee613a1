"""What judges a retouch: verifiable rewards, face identity, learned judges."""
