"""What the town thinks and reports: reviews, company reports, posts, opinions and news in four topics, without any label.

    feeling ─► sentences that agree with it ─► "The plot was gripping and clever. Nobody called the ending dull. Time flew by."
               adjective · negated opposite · objection, then verdict · outcome

One text says what it means in more than one way, so whoever learns to predict its words must learn which words mean the same:
the rare adjective beside the common one, the negated opposite, the outcome, the argument behind a stance, the remark that does
not fit the situation. No label is ever written down. `twins` cuts its labelled sets from the same sentences.

A frame and the word in it make a pair, and a tenth of all pairs is kept for validation, a tenth for test: every word and every
frame is in the training text, the kept pairs are not.

Does:     review-text (food, goods, films), report, post (sincere or ironic), opinion (on five questions of the town), topic-news;
          `judged`, reviews followed by the word for their feeling.
Leaves out: strength of feeling; spelling as people post it.
"""

from __future__ import annotations

from .companies import reports
from .judging import judged, reviews
from .remarks import posts
from .stances import opinions
from .topics import topic_news

__all__ = ["OPINIONS", "judged", "opinions", "posts", "reports", "reviews", "topic_news"]

OPINIONS = {"review-text": reviews, "report": reports, "post": posts, "opinion": opinions, "topic-news": topic_news}
