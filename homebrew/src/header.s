; Cartridge header and vectors. build.py writes the checksum.

.segment "HEADER"
    .byte $48, $4F, $4D, $45, $42, $52, $45, $57, $20, $4B, $41, $52, $54   ; "HOMEBREW KART" in ASCII,
    .res 8, $20                                                             ; whatever .charmap says
    .byte $20               ; LoROM, slow
    .byte $00               ; ROM only
    .byte ROM_SIZE          ; $0A: 1 MB, $0C: 4 MB
    .byte $00               ; no save RAM
    .byte $01               ; NTSC
    .byte $00
    .byte $01               ; version
    .word $FFFF, $0000      ; complement, checksum
    .word 0, 0
    .word .loword(ignore), .loword(ignore), .loword(ignore), .loword(nmi), 0, .loword(ignore)
    .word 0, 0
    .word .loword(ignore), 0, .loword(ignore), .loword(ignore), .loword(reset), .loword(ignore)
