#!/usr/bin/env bash
# MNIST, the public numbers of Hinton, Vinyals & Dean 2015, section 3: images as frames, digits as states.
recipe=mnist
usage='Takes the four IDX files of MNIST from --corpus, or fetches them, and repeats section 3 of Hinton, Vinyals & Dean
2015: a regularised net, a plain smaller one, the smaller one distilled from the former, smaller ones still at several
temperatures, and transfer sets without a digit or of two digits only. Beyond the paper: the plain and the distilled net
on shifted images; and on images that are turned and bent the plain net, and one distilled from all seeds of it. The
configuration is that of the regularised net (num_epochs, learning_rate, hidden_dim, dropout, ...); all others have its
optimiser and student_epochs (small ones sweep_epochs, at each of sweep_temperatures), and neither dropout nor max-norm.
From the speed of a training step, quick should take half an hour and full nine hours on two plain cores.
Options of this recipe:
  --student-dim N     hidden units a layer, plain and distilled (default 800)
  --small-dims LIST   of the students at several temperatures (default 30,300)
  --dev-images N      the last of the 60,000 training images, on which nothing is trained and whatever is chosen must
                      be chosen (default 1000, to watch; 10000 to choose)
  --num-images N      only the first of the training and of the test images (default all)
  --any-version true  take IDX files that are not those of MNIST'
student_dim=800
small_dims=30,300
dev_images=1000
num_images=
any_version=false
own_options="student_dim small_dims dev_images num_images any_version"
clean_suffix=
stage_folders=mnist
. "$(dirname "${BASH_SOURCE[0]}")/../common/run_stages.sh"
