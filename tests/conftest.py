"""Settings of every test: reproducible examples, no time limits that a busy machine breaks."""

import hypothesis

hypothesis.settings.register_profile("modes_fx", deadline=None, derandomize=True)
hypothesis.settings.load_profile("modes_fx")
