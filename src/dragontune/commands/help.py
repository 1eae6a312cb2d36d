"""What `dragontune --help` prints; it imports nothing, so that it is there at once."""

HELP = """\
dragontune: tune, steer and judge generative media models with any reward

  dragontune tune RECIPE.yaml [--out RUN] [--resume] [overrides]
      fine-tune; RUN defaults to runs/<recipe name>; any field can be overridden, as in --loop.rounds 8;
      --print_config shows the resolved recipe; with a guard section it stops before it over-optimises
  dragontune generate --model MODEL --prompt TEXT | --prompts FILE --out DIR
                      [--adapter RUN[:WEIGHT] ...] [--scale GAMMA] [--steer STEER.yaml] [--count N]
                      [--seed N] [--steps N] [--guidance W] [--precision bf16] [--seconds S | --height N --width N]
                      [--offload] [--tiling]
      make clips, images or videos, with the adapter of a run, a mixture of several, or without; --steer makes better
      ones of an untouched model by any reward, and says beforehand what that takes
  dragontune score MEDIA_DIR --reward REWARD.yaml | FILE.py:NAME [--prompts FILE] [--json]
                   [--cache DIR | --no-cache] [--workers N]
      any reward, or a function of yours, on a folder of files
  dragontune reference MEDIA_DIR | SONGS.m3u | CAPTIONS.txt --encoder NAME --out REF.safetensors
                       [--cache DIR | --no-cache] [--workers N] [--batch N]
      store the statistics of exemplars; what was embedded once is not embedded again
  dragontune fit-aesthetics RATINGS.csv --encoder NAME --out HEAD.safetensors
                            [--head ridge|nadaraya-watson] [--seed N] [--json]
      learn what raters like, for the reward Aesthetics
  dragontune evaluate RUN [--prompts FILE] [--out DIR] [--steer STEER.yaml]
      the tuned model against the untuned one, same seeds; with --steer against steering at equal cost, too
  dragontune evaluate --model MODEL --steer STEER.yaml --prompts FILE --out DIR [--seed N]
      the same for a model that is not tuned
  dragontune serve-reward REWARD.yaml | FILE.py:NAME [--host HOST] [--port N] [--workers N] [--token-variable NAME]
      compute a reward for runs elsewhere, which name it as RemoteReward or RemoteSetReward: docs/service.md
  dragontune doctor RECIPE.yaml
      check everything, estimate memory and time, run nothing

MODEL is tiny-music or tiny-tokens (embedded), a local diffusers folder or a hub name: docs/models.md; what an encoder's
NAME can be: docs/encoders.md.
`dragontune VERB --help` says more. Exit codes: 0 done, 1 a defect, 2 wrong input, 5 stopped on a number that is not
finite, 6 a reward service was lost (the state is saved), 75 interrupted with the state saved.
"""
