; Start-up, transfers and the screen split: what the game and the minimal ROM have in common.
; Convention: A, X and Y are 16 bits wide between routines, data bank 0, direct page 0.

.segment "CODE"

; Fill the picture unit's registers with a defined state; the screen stays dark.
.macro INIT_PPU
    sep #$20
.a8
    lda #$80
    sta INIDISP
    stz NMITIMEN
    stz HDMAEN
    stz MDMAEN
    stz MEMSEL
    ldx #OBSEL
:   stz $0000,x             ; twice: many of these take two bytes
    stz $0000,x
    inx
    cpx #MPYL
    bne :-
    lda #$80
    sta VMAIN
    lda #$23                ; sprites 8x8 and 32x32, tiles at $6000/$7000
    sta OBSEL
    lda #$09
    sta BGMODE
    lda #((VRAM_SKY_MAP >> 8) & $FC) | 1
    sta BG2SC
    lda #(VRAM_TEXT_MAP >> 8) & $FC
    sta BG3SC
    lda #(VRAM_TILES >> 12) << 4
    sta BG12NBA
    lda #(VRAM_TEXT_MAP >> 12)
    sta BG34NBA
    lda #$FF                ; background rows start one line late: scroll by -1
    sta BG2VOFS
    sta BG2VOFS
    sta BG3VOFS
    sta BG3VOFS
    lda #$C0                ; outside the world the picture unit repeats tile 0
    sta M7SEL
    lda #$16
    sta TM
    lda #$E0                ; colour maths off: fixed colour black
    sta COLDATA
    rep #$20
.a16
.endmacro

; Split the screen by HDMA: channel 3 sets the background mode, channel 4 the layers. A is 8 bits wide, X and Y 16.
.macro SPLIT_SCREEN
    stz DMA3                ; one register
    lda #<BGMODE
    sta DMA3 + 1
    ldx #.loword(split_mode)
    stx DMA3 + 2
    lda #^split_mode
    sta DMA3 + 4
    stz DMA4
    lda #<TM
    sta DMA4 + 1
    ldx #.loword(split_layers)
    stx DMA4 + 2
    lda #^split_layers
    sta DMA4 + 4
.endmacro

; Write a string (ended by $FF) into the text buffer.
.macro PRINT row, column, look, string
    lda #look
    sta tmp0
    ldx #((row) * 32 + (column)) * 2
    ldy #.loword(string)
    jsr print
.endmacro
