"""The fixed words of the page, and how it looks."""

DEFINITIONS = (
    (
        "ε",
        "How far, in nats per token, a final loss may lie above the best of its scheme, body, size and seed and still "
        "count as stable. Both are read on one fixed held-out set. The figure by tolerance shows the result for any ε.",
    ),
    ("stable", "The loss fell, stayed low, and ended within ε of the best sibling's."),
    (
        "degraded",
        "The loss is finite and fell, yet ended more than ε above the best sibling's, at a learning rate above that "
        "sibling's. Unstable.",
    ),
    (
        "stalled",
        "The loss never got below the unigram entropy of the corpus, at a learning rate above the best sibling's. "
        "Unstable.",
    ),
    ("diverged", "The smoothed loss left its best by a margin in nats and stayed away. Unstable at any learning rate."),
    ("nonfinite", "The loss became NaN or infinite. Unstable at any learning rate."),
    (
        "undertrained",
        "The loss ended high or stalled, at a learning rate not above the best sibling's: too low a learning rate, "
        "which says nothing of stability.",
    ),
    ("error", "A fault of the program or machine. Left out of every statistic."),
    (
        "max stable LR",
        "The bracket from the largest tested learning rate up to which none is unstable to the smallest unstable one. "
        "Over several seeds a learning rate is unstable if at least half of them are. “> 3”: none was unstable up to "
        "3; “< 1e-3”: none was stable from 1e-3 on.",
    ),
    (
        "at 2ε",
        "The same bracket at twice the ε. Where it lies far higher, the losses above the bracket form a plateau: it "
        "says more of ε, and of how long was trained, than of an edge.",
    ),
    (
        "LR50",
        "The learning rate with even odds of instability: median and 95% interval of a probit in log learning rate, "
        "fitted to the outcomes of all seeds. One seed gives an interval of about two and a half grid steps.",
    ),
    (
        "best loss @ LR",
        "The lowest point of the mean over seeds of the final held-out loss, in nats per token.",
    ),
    (
        "LR sensitivity",
        "Mean over the tested learning rates of the final loss above the best, in nats, losses capped at the untrained "
        "model's (Wortsman et al., arXiv 2309.14322).",
    ),
    ("spikes/1k", "Loss spikes in 1,000 optimizer steps, over all trials of the scheme."),
    (
        "same-batch/1k",
        "The same rule on each trial’s loss above the median loss, at the same step, of the other trials of its body "
        "and size that are stable, and on its gradient norm over theirs. All see the same batches, so a hard batch "
        "vanishes and an instability stays. A dash: fewer than two of them.",
    ),
    (
        "OLMo score",
        "Percentage of losses at least 7 standard deviations from the mean of the 1,000 before (OLMo 2, arXiv "
        "2501.00656); of steps whose loss or gradient norm is more than 6 above that of the 128 before (OLMo-core). "
        "A dash: no step has as many before it.",
    ),
    (
        "first to leave",
        "A signal leaves the band of the stable trials of its scheme, body and size, its siblings, when it is higher "
        "for 20 steps on end than any of them at that step or later, by more than any of them is above the others. "
        "Signals are the loss, log Z, the gradient norm, the update norm over the learning rate, and each layer’s "
        "output norms and attention logits. Shown: where the first was in most unstable trials, and in those of the "
        "lowest unstable learning rate. First is not the cause, and far above the stable learning rates everything "
        "leaves soon.",
    ),
    (
        "before loss, before onset",
        "How many steps the first signal left before the loss did, and before the onset of the trial’s own verdict; "
        "median over the unstable trials. A dash: the loss never left, or the verdict has no onset, as that of "
        "degraded trials.",
    ),
    (
        "false alarms",
        "Each sibling against the band of the others: the share of its signals that leave, and in how many siblings "
        "any does. With few siblings, which signal is first means little.",
    ),
)
"""Terms and what they mean, for the end of the page."""

CSS = """
:root {
  color-scheme: light dark;
  --ink: #1c1e21; --soft: #5c6370; --line: #dcdfe4; --page: #fff; --card: #f6f7f9;
  --bad: #b3261e; --warn: #8a5a00; --good: #1b6e3c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e6e6; --soft: #a0a7b4; --line: #3a3f47; --page: #16181c; --card: #202329;
    --bad: #ff8a80; --warn: #ffcf70; --good: #7ddb9c;
  }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
pre, dd { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: var(--card); padding: .7rem; border-radius: 6px; font-size: .85rem; }
figure { margin: 1.6rem 0; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; margin-top: .4rem; }
img { display: block; box-sizing: border-box; max-width: 100%; background: #fff; border-radius: 6px; padding: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
.number { text-align: right; }
.reason { white-space: normal; min-width: 18rem; }
.degraded, .stalled, .diverged, .nonfinite { color: var(--bad); }
.undertrained, .error { color: var(--warn); }
.stable { color: var(--good); }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; color: var(--soft); max-width: 46rem; font-size: .92rem; }
summary { cursor: pointer; margin-top: .6rem; }
@media (max-width: 40rem) { img { max-width: none; } }
"""
