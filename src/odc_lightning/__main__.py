from odc_lightning.app import main

main()
