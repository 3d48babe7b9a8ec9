"""``python -m sb3_delight.zoo``"""

from sb3_delight.zoo import main

main()
