; A ROM that uses what an emulator may compute only while it draws, and that writes down all it sees of it in RAM.
; Tests patch the tables at $FE00: what the program does in each of eight times 32 frames. See picture_roms.py.

.p816
.i16
.a8

COUNT  = $00            ; frames, 16 bits
SEED   = $02            ; random numbers, 16 bits
FLAGS  = $04            ; all of $213E that the main loop saw in this frame
LOOPS  = $06            ; iterations of the main loop, 16 bits
PADS   = $08            ; the sum of what was held, 16 bits
OAM    = $0200          ; 512 + 32 bytes
AT_NMI = $1000          ; rings of 256 frames
AT_IRQ = $1100
POLLED = $1200
BEAM   = $1300
FIELD  = $1400

.segment "TABLES"
setini:     .res 8      ; $2133 from the vertical blank on: interlace, sprites' interlace, overscan, pseudo hi-res
setini_irq: .res 8      ; the same from line 100 on
bgmode:     .res 8
bgmode_irq: .res 8
obsel:      .res 8      ; sizes of sprites
obsel_irq:  .res 8
crowd:      .res 8      ; whether the sprites are all on few lines
hdma:       .res 8      ; channels
irq:        .res 8      ; whether there is an interrupt at line 100; 2: it also writes sprites
poll:       .res 8      ; whether the main loop reads $213E all the time

.segment "CODE"
reset:
    sei
    clc
    xce
    rep #$10
    sep #$20
    ldx #$1FFF
    txs
    lda #$80
    sta $2100
    sta $2115
    ldx #$1234
    stx SEED
    stz COUNT
    stz COUNT + 1
    stz PADS
    stz PADS + 1
    ldx #0
    stx $2116
tiles:
    jsr random
    sta $2118
    jsr random
    sta $2119
    inx
    cpx #$4000
    bne tiles
    stz $2121
    ldx #512
colours:
    jsr random
    sta $2122
    dex
    bne colours
sprites:
    jsr random
    sta OAM, x
    inx
    cpx #544
    bne sprites
    lda #$30
    sta $2107
    lda #$34
    sta $2108
    lda #$38
    sta $2109
    stz $210B
    stz $210C
    lda #$1F
    sta $212C
    lda #$13
    sta $212D
    lda #$02
    sta $2130
    lda #$21
    sta $2131
    lda #$31
    sta $2106           ; mosaic
    ldx #channels_end - channels - 1
dma:
    lda channels, x
    sta $4310, x
    dex
    bpl dma
    lda #100
    sta $4209
    stz $420A
    lda #$81
    sta $4200
    lda #$0F
    sta $2100
main:
    ldx LOOPS
    inx
    stx LOOPS
    lda COUNT
    lsr
    lsr
    lsr
    lsr
    lsr
    and #7
    rep #$20
    .a16
    and #7
    tay
    sep #$20
    .a8
    lda poll, y
    beq main
    lda $213E
    ora FLAGS
    sta FLAGS
    bra main

nmi:
    rep #$30
    .a16
    pha
    phx
    phy
    sep #$20
    .a8
    lda $4210
    lda COUNT
    rep #$20
    .a16
    and #$FF
    tax                 ; x: the place in the rings
    lsr
    lsr
    lsr
    lsr
    lsr
    and #7
    tay                 ; y: the row of the tables
    sep #$20
    .a8
    lda $213E
    sta AT_NMI, x
    lda FLAGS
    sta POLLED, x
    stz FLAGS
    lda $2137
    lda $213D
    eor $213D
    sta BEAM, x
    lda $213F
    sta FIELD, x
    stz $2102
    stz $2103
    lda #$00
    sta $4300
    lda #$04
    sta $4301
    ldx #OAM
    stx $4302
    stz $4304
    ldx #544
    stx $4305
    lda #1
    sta $420B
    lda setini, y
    sta $2133
    lda bgmode, y
    sta $2105
    lda obsel, y
    sta $2101
    lda hdma, y
    sta $420C
    lda irq, y
    beq no_irq
    lda #$20
no_irq:
    ora #$81
    sta $4200
    ldx #0
move:                   ; every sprite
    jsr random
    and #3
    clc
    adc OAM, x
    sta OAM, x
    rep #$20
    .a16
    txa
    lsr
    sep #$20
    .a8
    clc
    adc COUNT           ; from line to line
    sta OAM + 1, x
    lda crowd, y
    beq free
    lda OAM + 1, x
    and #$1F
    ora #$40
    sta OAM + 1, x
free:
    inx
    inx
    inx
    inx
    cpx #512
    bne move
pads:
    lda $4212
    and #1
    bne pads
    rep #$20
    .a16
    lda $4218
    clc
    adc PADS
    sta PADS
    inc COUNT
    rep #$30
    ply
    plx
    pla
    rti

irq_100:
    rep #$30
    .a16
    pha
    phx
    phy
    sep #$20
    .a8
    lda $4211
    lda COUNT
    rep #$20
    .a16
    and #$FF
    tax
    lsr
    lsr
    lsr
    lsr
    lsr
    and #7
    tay
    sep #$20
    .a8
    lda $213E
    sta AT_IRQ, x
    lda setini_irq, y
    sta $2133
    lda bgmode_irq, y
    sta $2105
    lda obsel_irq, y
    sta $2101
    lda irq, y
    and #2
    beq irq_ends
    lda #$80
    sta $2100
    stz $2102
    stz $2103
    ldx #256
rewrite:                ; half of the sprites, upside down
    lda OAM, x
    eor #$FF
    sta $2104
    dex
    bne rewrite
    lda #$0F
    sta $2100
irq_ends:
    rep #$30
    .a16
    ply
    plx
    pla
ignore:
    rti
    .a8

random:                 ; a: a random byte
    lda SEED + 1
    lsr
    lda SEED
    ror
    php
    eor SEED + 1
    sta SEED + 1
    lda SEED
    ror
    plp
    ror
    eor SEED + 1
    sta SEED
    lda SEED + 1
    adc #$3B
    sta SEED + 1
    eor SEED
    rts

channels:               ; of HDMA, from 1 on: scrolling, sizes of sprites, brightness, mode
    .byte $02, $0D
    .word scrolling
    .byte 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .byte $00, $01
    .word sizes
    .byte 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .byte $00, $00
    .word brightness
    .byte 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .byte $00, $05
    .word modes
    .byte 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
channels_end:
scrolling:
    .byte 40, 3, 0, 40, 9, 0, 40, 77, 0, 40, 200, 0, 0
sizes:
    .byte 30, $00, 30, $60, 30, $A0, 30, $C0, 30, $00, 0
brightness:
    .byte 50, $0F, 20, $80, 20, $03, 1, $0F, 0
modes:
    .byte 60, $01, 60, $05, 60, $03, 0

.segment "HEADER"
    .byte "PICTURES             "
    .byte $20, $00, $05, $00, $01, $00, $01
    .word $FFFF, $0000
    .word 0, 0
    .word .loword(ignore), .loword(ignore), .loword(ignore), .loword(nmi), 0, .loword(irq_100)
    .word 0, 0
    .word .loword(ignore), 0, .loword(ignore), .loword(ignore), .loword(reset), .loword(ignore)
