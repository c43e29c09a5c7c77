x = 1


def run_study(settings, should_stop):
    raise SystemExit
