"""What an `align-retoucher` run leaves for people: report, card, plots."""
