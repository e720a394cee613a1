"""How good and how biased a judge is: figures, hacks, public benchmarks, report and card."""
